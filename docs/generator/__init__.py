"""Pages made when the site is built: of claims, of estimators, of modules, of tutorials."""
