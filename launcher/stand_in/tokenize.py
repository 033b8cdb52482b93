"""What takes the place of the standard library's ``tokenize`` in the executable: nothing.

``inspect`` imports it to find the end of a function in source text, and there is no source.
"""
