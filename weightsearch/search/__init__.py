"""An index as people know it: query, add, the answer and its words."""
