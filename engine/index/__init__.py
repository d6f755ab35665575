"""The similarity index: IVF segments over the vectors of a store, built, measured and searched."""
