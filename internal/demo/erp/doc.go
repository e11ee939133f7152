// Package erp is the demo's ERP: a small server that speaks the part of
// Microsoft Dynamics 365 Business Central's API v2.0 that a time-and-project
// integration uses, over a real socket, with a ledger on disk.
//
// Standard, as Business Central documents it:
//
//   - OAuth2 client credentials at /{tenant}/oauth2/v2.0/token;
//   - /api/v2.0/companies, and in a company customers, employees, projects
//     (number and displayName only, as in the product) and
//     timeRegistrationEntries;
//   - $filter (eq, and), $top, server-driven paging with @odata.nextLink,
//     @odata.etag, and If-Match required on PATCH: 409 Request_EntityChanged
//     when it is stale;
//   - errors as {"error":{"code","message"}}; a key that exists already is 400
//     Internal_EntityWithSameKeyExists;
//   - 429 with Retry-After above 6,000 requests in 5 minutes, or when more than
//     5 run and 95 wait; 503 after 8 minutes in the queue.
//
// Custom, as a tenant publishes API pages in AL (publisher tallywire, group
// timesheets, version v1.0), under /api/tallywire/timesheets/v1.0:
//
//   - projects with customerId, customerNumber and blocked;
//   - timeRegistrationEntries with externalReference (unique, enforced) and the
//     read-only customerNumber of the project; its status may be written.
//
// Left out: DELETE, $batch, $expand, $orderby, deep inserts, number series.
//
// The server can be told to misbehave: see [Faults].
package erp
