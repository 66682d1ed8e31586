//! Virtual cables: tap and its kin
