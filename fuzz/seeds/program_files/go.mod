module example.com/k // ours

go 1.26.8

require (
	k8s.io/kubernetes v1.37.2
	k8s.io/api v0.0.0 // indirect
)
replace (
	k8s.io/api => k8s.io/api v0.37.2
	a.b/c v1.0.0 => ../c
)
