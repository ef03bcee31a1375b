"""In the cloud: protected features in, attributes with probabilities out (`serve`)."""
