"""Other libraries' training steps, each in a process of its own under an environment of its own (`make peers`)."""
