variable "cluster" {
  description = "A name for all that is made here, unique in the account and region."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,32}$", var.cluster))
    error_message = "1 to 32 of a-z, 0-9 and -."
  }
}

variable "vpc_id" {
  description = "The network of nodes and pod VMs."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets for pod VMs, the first choice first; one in each zone that classes name."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "At least one subnet."
  }
}

variable "node_security_group_ids" {
  description = "Security groups of the nodes."
  type        = list(string)
}

variable "bucket" {
  description = "An existing bucket for the image's upload, in this region."
  type        = string
}

variable "owner" {
  description = "The controller's owner tag (the file owner in its state_dir). Null allows any, for the first apply."
  type        = string
  default     = null
}

variable "oidc_provider_arn" {
  description = "The cluster's OIDC provider, for a controller in EKS. Null makes no role."
  type        = string
  default     = null
}

variable "service_account" {
  description = "NAMESPACE:NAME of the controller's service account."
  type        = string
  default     = "peerpods:peerpods-controller"
}

variable "instance_types" {
  description = "Types that may be launched, the cheapest first."
  type        = list(string)
  default     = ["m6a.large", "m6a.xlarge", "m6a.2xlarge", "m6a.4xlarge", "m6a.8xlarge"]
}

variable "tags" {
  description = "More tags for all that is made here."
  type        = map(string)
  default     = {}
}
