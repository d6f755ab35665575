"""Where images come from.

``locate`` says what a SOURCE or an IMAGE is; ``files``, ``arrays`` and ``synthetic`` read one kind
each. Whatever it is, it becomes a stream of the items in ``base``, in a stable order.
"""
