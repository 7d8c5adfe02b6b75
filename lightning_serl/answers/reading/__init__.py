"""Finds the answer in the text of a response: in a box, after "the answer is", or the last formula."""
