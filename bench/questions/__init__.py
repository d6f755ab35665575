"""Scripts that each answer one question: ``python -m bench.questions.kills``."""
