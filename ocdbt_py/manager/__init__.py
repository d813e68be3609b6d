"""Many checkpoints of one run: when to save, what to keep, and which of them is the one to go on from.

    manager         CheckpointManager, for training loops that save pytrees
    watching        for evaluators: wait until there is a new step
    stopping        save once more when the scheduler says that the job ends
    options         all that can be chosen
    save_decisions  policies: is this step saved?
    preservation    policies: which steps stay?
    root            a directory of steps; knows nothing of what a checkpoint is made of
    saving          the save under way
    step_list       the list of steps meanwhile
    step_names      how the directory of a step is called
    listing         the steps that are there, and what is known of them
    deleting        taking a step away so that nobody takes the rest of it for a checkpoint
    root_metadata   what the user says of the run as a whole
    snapshots       hold a step while an evaluator reads it
    meeting         several roots in one group of processes

All of it works without JAX, on every storage that can list and be written.
"""
