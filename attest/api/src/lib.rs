//! EVE device API v2: messages, envelope, conversions
