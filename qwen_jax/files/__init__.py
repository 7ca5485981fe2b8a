"""Files: written aside and renamed, read strictly, with every problem named. No JAX in here."""
