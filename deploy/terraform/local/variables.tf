variable "image_folder" {
  description = "Where the image goes: vmlinux, initrd, uki.efi, disk.raw, manifest.json."
  type        = string
  default     = "/var/lib/peerpods/image"
}

variable "state_dir" {
  description = "Where machines keep their files."
  type        = string
  default     = "/var/lib/peerpods/machines"
}

variable "build" {
  description = "The command that builds the image into the folder that is appended to it."
  type        = string
  default     = "cargo xtask image --release --out"
}
