"""What the layers above need from a place that holds files, and how a URL names one."""
