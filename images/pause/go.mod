module stead/images/pause

go 1.24
