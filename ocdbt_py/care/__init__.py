"""What keeps data sound: checks that say everything that is wrong, and where.

check       the call: resolve, walk, report
report      findings and the report that holds them
history     manifests and version trees: every version there is
trees       every B-tree node once, compared with all that is said of it
values      their bytes, where a checkpoint keeps checksums of them
files       which bytes of which files are referred to, and what else lies there
"""
