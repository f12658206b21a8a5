"""The same model and data on several meshes and engines, one run after another, as a table and a picture."""
