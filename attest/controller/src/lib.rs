//! Client of the EVE controller: requests, retry, queues
