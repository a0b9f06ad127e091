"""What is written: the operations of a graph."""
