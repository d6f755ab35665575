"""The similarity index: IVF segments over the vectors of a store, built, measured and searched."""

from engine.index.threads import survive_forks

survive_forks()
