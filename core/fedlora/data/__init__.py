"""What is learned: examples, data sets by name, chat templates."""
