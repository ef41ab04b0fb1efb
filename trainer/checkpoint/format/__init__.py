"""What a checkpoint is on the disk: its files, its manifest, the folder of a run's checkpoints and which of them are kept. Imports no other package of checkpoint/."""
