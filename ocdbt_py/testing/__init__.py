"""For tests, ours and those of a backend's author: what every storage must do, and a storage that fails on purpose."""
