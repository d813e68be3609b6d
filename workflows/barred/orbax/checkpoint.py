"""Found in Orbax's place by the programs that run on ours; ``install()`` comes before it, and is what they may find."""

raise ImportError("Orbax is barred here: this program runs on ocdbt_py")
