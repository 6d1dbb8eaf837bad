//! Reading reservations: many ids in one query, tickets, and proofs of absence.
