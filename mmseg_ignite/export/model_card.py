"""The model card of an exported model, in Markdown."""

from .description import ModelDescription


def model_card(description: ModelDescription, scores: dict | None) -> str:
    """Return the model card of a model."""
    return f'# {description.name}\n'
