"""Completion methods: one readable loop each, the machinery they share, and ``completion.complete`` over them."""
