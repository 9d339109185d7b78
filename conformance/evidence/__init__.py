"""What a run keeps of wrong tensors and of pictures for people to look at: the folder data/."""
