"""Classification of whole images: networks, training, inference, and what a user sees of a class."""
