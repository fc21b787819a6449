"""Pictures of what a model learnt and looks at: numbers from arrays, figures from numbers."""
