//! On-disk and on-wire formats: GPT, FAT, UKI, verity, erofs, update payload
