//! Generic graph reconciler: intended against current, ordered actions
