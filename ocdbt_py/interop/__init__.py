"""Drop-ins and plugs for other libraries."""
