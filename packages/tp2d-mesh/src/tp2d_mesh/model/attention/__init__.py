"""Attention of packed rows: document by document, by a kernel for each kind of device."""
