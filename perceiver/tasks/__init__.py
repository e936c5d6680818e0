"""Training tasks, one file each: a LightningModule around a plain torch module."""
