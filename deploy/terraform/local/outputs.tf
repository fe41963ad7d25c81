output "image" {
  description = "The image's folder."
  value       = terraform_data.image.output.folder
}

output "settings" {
  description = "The part of controller.toml that says where pod VMs come from."
  value       = <<-EOT
    [provider]
    kind = "local"

    [provider.local]
    level = "qemu"
    image = "${terraform_data.image.output.folder}"
    state_dir = "${var.state_dir}"
  EOT
}
