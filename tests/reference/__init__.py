"""What results are held against: slow and obvious computations, other libraries, and how far from them is near."""
