"""Recurrent cells: one file per member, `name(input_size, hidden_size, *, activation, ...) -> Cell`."""
