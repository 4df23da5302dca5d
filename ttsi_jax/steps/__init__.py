"""What Algorithm 1 is made of, for ONE input: generators that yield what they want the model to do."""
