"""The way out of OpenAI's fine-tuning: fetch what is there, record the old model's answers, make recipes, compare."""
