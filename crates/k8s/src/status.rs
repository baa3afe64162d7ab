//! Status conditions that are written back to objects (contract 7.6).
