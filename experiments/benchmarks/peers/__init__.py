"""The same networks in other libraries, written as their users write them, one file a family."""
