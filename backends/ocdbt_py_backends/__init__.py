"""Storage backends: what is known about one kind of store stands in the modules of its name, and nowhere else.

Each holds a class that meets :class:`ocdbt_py.storage.protocol.Storage` and, through two class methods,
:class:`ocdbt_py.storage.location.Backend`. Nothing here is imported before a URL asks for it.
"""
