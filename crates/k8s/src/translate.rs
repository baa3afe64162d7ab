//! Objects to the model that nodes get (contract 4.3, 5.3, 5.4).
