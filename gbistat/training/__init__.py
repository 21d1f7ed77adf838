"""Training and export of networks: the one importer of Keras."""
