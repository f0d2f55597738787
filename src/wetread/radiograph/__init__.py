"""One image: any file to a Radiograph, and the array that a model sees."""
