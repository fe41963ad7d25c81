//! The pod VM image: pins, kernel, initrd, UKI, measurements.
