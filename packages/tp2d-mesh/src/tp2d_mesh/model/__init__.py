"""What both engines know of a model: its plan, its families, its weights, its loss, packed rows and its optimizer."""
