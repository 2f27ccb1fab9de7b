"""Import the files of a data set into a store."""
