"""Found in TensorStore's place by the programs that run on ours: none of them may need it."""

raise ImportError("TensorStore is barred here: this program runs on ocdbt_py")
