"""Commits, the B-tree, versions and data files, against a :class:`~ocdbt_py.storage.protocol.Storage`.

engine      one database: its current manifest, its versions' trees, commits to it
committer   the threads of one process queue up here
commit      the commit protocol: stage values, rewrite the tree, replace the manifest, start over on conflict
notes       small commits of processes that wait, made by the one whose turn it is
mutations   what a commit changes, and its values staged as columns
rewrite     mutations + old tree -> new tree
columns     join, pick and cut the columns of nodes
split       which entries go into which node
versions    the version tree: find, walk, append
data_files  values and nodes -> data files, a name and an offset for each
manifests   the manifest, single or numbered: load, re-validate, replace
tree        one version's keys: look up, scan
diff        where two versions differ
nodes       locations -> decoded nodes, checked and cached
entries     what the engine answers, and how a caller names a version
options     what a caller demands of a database, and how it writes
"""
